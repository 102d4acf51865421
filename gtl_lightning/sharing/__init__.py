"""Models as folders that stand alone: hashes of their files, what they say of themselves, the way to a hub and back."""
