"""HTTP: a server for many adapters by OpenAI's API; it takes the extra `serve`."""
