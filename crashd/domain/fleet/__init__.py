"""What hosts put into a fleet's object storage: names of objects, lines of records, policies."""
