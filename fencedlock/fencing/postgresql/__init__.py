"""PostgreSQL, by psycopg, psycopg2 or asyncpg; and triggers that let nobody change a table without a check."""

from fencedlock.fencing.postgresql.fence import PostgreSQLFence

__all__ = ["PostgreSQLFence"]
