"""Choose a method within a budget: compositions that fit, and the one that learns a task best."""
