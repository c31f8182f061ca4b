"""ssl_jax: self-supervised learning without contrastive pairs, its dynamics, and weight decay."""
