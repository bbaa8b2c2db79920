"""The configurator: which compositions fit a budget, and which of them learns the user's task best."""
