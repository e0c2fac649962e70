//! Heads: what turns features into logits.
