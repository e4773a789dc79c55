"""Tests of crashd; CONTRIBUTING.md says what each directory may touch."""
