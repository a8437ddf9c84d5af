"""Claims of the papers, put to the test: recipes that differ in one thing, measured alike, with intervals."""
