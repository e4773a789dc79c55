"""The central half of a fleet: the indexer from object storage to PostgreSQL, and the questions to
it.
"""
