"""What a recipe will cost, by arithmetic: sizes, bytes, floating-point operations, seconds."""
