"""The commands of `gtl`, by what they are about. Nothing heavy is imported before a command runs."""
