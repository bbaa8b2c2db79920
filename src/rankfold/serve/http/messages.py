"""Messages of the server: requests and answers as JSON, in the shapes of OpenAI's API."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

MOST_TEXTS = 2048
"""The most texts of a request."""

Name = Annotated[str, Field(min_length=1, max_length=255)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Zero = Annotated[float, Field(ge=0, le=0)]


def _form_of(value: object) -> str:
    """Return which form an input has, so that an error is about that form alone."""
    if not isinstance(value, list):
        return "text"
    first = next(iter(cast("list[object]", value)), None)
    return "tokens" if isinstance(first, int) else "token lists" if isinstance(first, list) else "texts"


Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS), Tag("texts")]
    | Annotated[list[Token], Field(min_length=1), Tag("tokens")]
    | Annotated[
        list[Annotated[list[Token], Field(min_length=1)]],
        Field(min_length=1, max_length=MOST_TEXTS),
        Tag("token lists"),
    ],
    Discriminator(_form_of),
]
"""A text, texts, the tokens of a text, or those of several."""


def inputs_of(value: Any) -> list[str | list[int]]:
    """Return an `Input` as a list of texts and lists of tokens."""
    return [value] if _form_of(value) in ("text", "tokens") else value


class Message(BaseModel):
    """A message with no unknown fields: none is passed over in silence, unless it asks for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    IDLE: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {}
    """Values of OpenAI's other fields that ask for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_idle(cls, values: Any) -> Any:
        """Leave out fields that are null, as clients send them, and others that ask for nothing."""
        if not isinstance(values, dict):
            return values
        fields = cast("dict[str, JsonValue]", values).items()
        return {name: value for name, value in fields if value is not None and not cls._is_idle(name, value)}

    @classmethod
    def _is_idle(cls, name: str, value: JsonValue) -> bool:
        return any(type(idle) is type(value) and idle == value for idle in cls.IDLE.get(name, ()))


class TextPart(Message):
    """A part of a turn."""

    type: Literal["text"]
    text: str


class Turn(Message):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The text of all parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class EmbeddingRequest(Message):
    """Texts, or their tokens, to embed."""

    model: Name
    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class StreamOptions(Message):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class SamplingRequest(Message):
    """How texts are continued: greedily, unless a temperature is named."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    user: str | None = None

    IDLE = {
        "best_of": (1,),
        "echo": (False,),
        "logit_bias": ({},),
        "logprobs": (False,),
        "metadata": ({},),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "suffix": ("",),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
    }

    @model_validator(mode="after")
    def _check_fields_that_need_others(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for a stream; set 'stream' to true, or leave them out")
        if self.temperature is None and self.top_p is not None and self.top_p < 1:
            raise ValueError(
                "top_p is for draws, and without a temperature the likeliest token is taken; name one, too"
            )
        return self


class CompletionRequest(SamplingRequest):
    """Prompts to continue."""

    prompt: Input
    max_tokens: Annotated[int, Field(ge=1)] = 16


class ChatRequest(SamplingRequest):
    """A conversation to answer."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MOST_TEXTS)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError(
                f"max_tokens is {self.max_tokens} and its other name, max_completion_tokens, is "
                f"{self.max_completion_tokens}; send one of them"
            )
        return self


Row = str | Annotated[list[str], Field(min_length=2, max_length=2)] | dict[str, JsonValue]
"""A text, a pair of texts, or a row of named columns."""


class ClassifyRequest(Message):
    """Texts, pairs of texts, or rows of named columns as in the training data."""

    model: Name
    input: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[Row], Field(min_length=1, max_length=MOST_TEXTS), Tag("rows")],
        Discriminator(lambda value: "rows" if isinstance(value, list) else "text"),
    ]


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class Embedding(BaseModel):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(BaseModel):
    """Embeddings in the order of the texts."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class CompletionChoice(BaseModel):
    """The continuation of one prompt."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: None = None


class CompletionAnswer(BaseModel):
    """Continuations in the order of the prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Reply(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The answer to a conversation."""

    index: int = 0
    message: Reply
    finish_reason: str | None
    logprobs: None = None


class ChatAnswer(BaseModel):
    """The answer to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ClassifyAnswer(BaseModel):
    """Answers in the order of the texts, as `rankfold predict` gives them."""

    object: Literal["list"] = "list"
    model: str
    data: list[dict[str, JsonValue]]


class ModelCard(BaseModel):
    """A model or an adapter that requests can name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rankfold"
    parent: str | None = None
    method: str | None = None


class ModelList(BaseModel):
    """A page of models; `last_id` is the `after` of the next one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    first_id: str | None
    last_id: str | None
    has_more: bool


class AdapterInfo(BaseModel):
    """An adapter of the store."""

    name: str
    base: str | None
    method: str
    bytes: int
    created: str
    digest: str


class Health(BaseModel):
    """Whether the server is well."""

    status: str


class ErrorDetail(BaseModel):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorDetail
