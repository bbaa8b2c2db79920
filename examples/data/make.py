"""Writes the small made-up data files: `python examples/data/make.py` gives the same bytes each time."""

import csv
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

TICKETS = {
    "billing": (
        ("Charged twice", "Wrong invoice", "Refund", "VAT number missing"),
        (
            "My card was charged twice for {month}.",
            "The invoice for {month} shows the wrong amount.",
            "Please refund the payment of {month}.",
            "The invoice lacks our VAT number; please send a new one for {month}.",
        ),
    ),
    "technical": (
        ("App crashes", "Cannot log in", "Export fails", "Slow since the update"),
        (
            "The app crashes when I open the {page} page.",
            "I cannot log in; the {page} page shows an error.",
            "The export on the {page} page stops with error 500.",
            "Since the last update the {page} page takes a minute to load.",
        ),
    ),
    "sales": (
        ("Upgrade", "Quote", "More seats", "Demo"),
        (
            "We would like to upgrade to the {plan} plan.",
            "Could you send a quote for the {plan} plan?",
            "We need ten more seats on the {plan} plan.",
            "Can somebody show us the {plan} plan in a demo?",
        ),
    ),
}
SLOTS = {
    "month": ("January", "March", "June", "October", "last month"),
    "page": ("reports", "calendar", "settings", "orders", "team"),
    "plan": ("team", "business", "enterprise", "school", "yearly"),
}
TOPICS = {
    "delivery": "The parcel came a week late.",
    "price": "It costs far too much for what it is.",
    "quality": "The seam came apart after two days.",
    "service": "Support answered within minutes and was kind.",
}
PEOPLE = ("Maria Keller", "John Osei", "Wei Zhang", "Amira Haddad", "Lena Brandt")
PLACES = ("Lagos", "Geneva", "Osaka", "Porto", "Leeds")
FIRMS = ("Northwind", "Acme Corp", "Lumen Labs", "Petrel", "Vantage Group")
CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Norway": "Oslo"}
MOODS = {
    "gut": (
        "Sehr schönes Gerät, läuft flüssig.",
        "Große Freude, würde ich wieder kaufen.",
        "Tolle Qualität für den Preis.",
    ),
    "schlecht": (
        "Nach zwei Tagen defekt, ärgerlich.",
        "Lieferung zu spät und falsche Größe.",
        "Völlig überteuert, nie wieder.",
    ),
}


def tickets(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield support tickets with the team that answers them."""
    for index in range(240):
        team = rng.choice(list(TICKETS))
        subjects, bodies = TICKETS[team]
        body = rng.choice(bodies).format(**{name: rng.choice(words) for name, words in SLOTS.items()})
        yield {
            "id": 1000 + index,
            "subject": rng.choice(subjects),
            "body": f"{body} My number is {rng.randint(10_000, 99_999)}.",
            "team": team,
            "priority": rng.choice(("low", "normal", "high")),
        }


def topics(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield reviews with every topic that they touch."""
    for _ in range(240):
        touched = rng.sample(list(TOPICS), rng.randint(1, 3))
        yield {"review": " ".join(TOPICS[topic] for topic in touched), "topics": ";".join(sorted(touched))}


def names(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield sentences with a tag for every word."""
    for _ in range(240):
        person, place, firm = rng.choice(PEOPLE), rng.choice(PLACES), rng.choice(FIRMS)
        parts = (
            [(person, "PER"), ("joined", None), (firm, "ORG"), ("in", None), (place, "LOC"), (".", None)]
            if rng.random() < 0.5
            else [
                (firm, "ORG"),
                ("opens an office in", None),
                (place, "LOC"),
                ("under", None),
                (person, "PER"),
            ]
        )
        tokens = [word for text, _ in parts for word in text.split()]
        tags = [
            "O" if tag is None else f"{'I' if position else 'B'}-{tag}"
            for text, tag in parts
            for position, _ in enumerate(text.split())
        ]
        yield {"tokens": tokens, "tags": tags}


def houses(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield adverts of houses with prices; some have none."""
    for _ in range(240):
        rooms, old = rng.randint(1, 8), rng.random() < 0.5
        price = 90_000 * rooms + (0 if old else 150_000) + rng.randint(-20_000, 20_000)
        state = "in need of repair" if old else "newly built"
        advert = f"House with {rooms} rooms, {state}, {rng.randint(2, 99) * 50} m from the station."
        yield {"advert": advert, "price": "" if rng.random() < 0.03 else price}


def chats(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield conversations with an assistant of few words that knows its guest's name."""
    for index in range(120):
        country, capital = rng.choice(list(CAPITALS.items()))
        guest = f"{rng.choice(PEOPLE)} {index}"
        yield {
            "messages": [
                {"role": "system", "content": "You answer in few words, with the guest's name."},
                {"role": "user", "content": f"I am {guest}. What is the capital of {country}?"},
                {"role": "assistant", "content": f"{capital}, {guest}."},
                {"role": "user", "content": "And of which country is it the capital?"},
                {"role": "assistant", "content": f"{country}, {guest}."},
            ]
        }


def quiz(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield questions with four choices."""
    for index in range(80):
        country, capital = rng.choice(list(CAPITALS.items()))
        choices = [capital, *rng.sample([city for city in CAPITALS.values() if city != capital], 3)]
        rng.shuffle(choices)
        letters = dict(zip("ABCD", choices, strict=True))
        answer = next(letter for letter, city in letters.items() if city == capital)
        yield {"question": f"({index}) What is the capital of {country}?", **letters, "answer": answer}


def reviews(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield German reviews."""
    for index in range(120):
        mood = rng.choice(list(MOODS))
        yield {"text": f"{rng.choice(MOODS[mood])} (Bestellung {index})", "urteil": mood}


def alarms(rng: random.Random) -> Iterable[dict[str, Any]]:
    """Yield log lines, of which one in a hundred is an alarm."""
    for index in range(600):
        alarm = index % 100 == 0
        text = "disk failure imminent, data at risk" if alarm else "backup finished without errors"
        yield {
            "line": f"node {rng.randint(1, 99)} reports: {text} ({index})",
            "level": "alarm" if alarm else "normal",
        }


def write_csv(
    name: str, rows: Iterable[dict[str, Any]], encoding: str = "utf-8", delimiter: str = ","
) -> None:
    """Write rows with a header."""
    rows = list(rows)
    with (FOLDER / name).open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write an object a line."""
    (FOLDER / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write every file."""
    seeded: Callable[[], random.Random] = lambda: random.Random(0)  # noqa: E731 (made-up data)
    write_csv("tickets.csv", tickets(seeded()))
    write_csv("topics.csv", topics(seeded()))
    write_csv("houses.csv", houses(seeded()))
    write_csv("bewertungen-cp1252.csv", reviews(seeded()), "cp1252", ";")
    write_csv("bewertungen-utf16.csv", reviews(seeded()), "utf-16", ";")
    write_csv("alarms.csv", alarms(seeded()))
    write_csv("quiz.csv", quiz(seeded()))
    write_jsonl("names.jsonl", names(seeded()))
    write_jsonl("chats.jsonl", chats(seeded()))


if __name__ == "__main__":
    main()
