"""Packed students: 2 bits a ternary weight on disk and in memory, and a runtime that decodes from them on a CPU."""
