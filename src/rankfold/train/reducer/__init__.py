"""The Reducer: which layers learn in a step, by importance or by chance."""
