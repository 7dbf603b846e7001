"""What makes a synthesizer of the base model: so far the attention sink of its branches."""
