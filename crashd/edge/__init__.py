"""One kernel interface or one foreign package per module; non-logging."""
