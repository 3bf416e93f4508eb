"""What an output must conform to: grammars checked, compiled within limits, and followed; no torch."""
