"""Recipes, one TOML file per model. No code."""
