"""Pretraining and fine-tuning: one loop, the recipes, and what each objective asks of a step."""
