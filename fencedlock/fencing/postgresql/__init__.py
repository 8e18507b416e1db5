"""PostgreSQLFence, for PostgreSQL through psycopg, psycopg2 or asyncpg.

It can also make triggers that refuse changes of a table without a check.
"""

from fencedlock.fencing.postgresql.fence import PostgreSQLFence

__all__ = ["PostgreSQLFence"]
