"""Where weights come from, and what a checkpoint's files say."""
