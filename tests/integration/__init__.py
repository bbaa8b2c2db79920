"""Do PEFT and transformers agree that we behave? Tiny random models, made here."""
