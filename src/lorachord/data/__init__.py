"""Tasks, where their rows come from, how they are mixed and scored. Stands alone: knows no model and no method."""
