"""crashd-ship: the process that sends crashes to object storage. It has no files."""
