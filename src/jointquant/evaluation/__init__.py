"""How good a model is: perplexity by the published protocol."""
