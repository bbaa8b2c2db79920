"""The tests of rankfold; each folder answers one question, see CONTRIBUTING.md."""
