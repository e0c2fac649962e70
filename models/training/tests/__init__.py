"""Tests of the training package: small, made-up data; what needs the binary or a fetched package skips without it."""
