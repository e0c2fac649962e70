"""Makes the models that ship with equipoise: icons, joint training, heads, evaluation, export."""
