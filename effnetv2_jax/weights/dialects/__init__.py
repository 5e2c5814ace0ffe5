"""Other people's names: libraries' conventions, and how they combine with a family's names."""
