"""Try mutated and random inputs on every parser of untrusted data."""
