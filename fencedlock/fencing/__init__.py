"""Fences: they make a store refuse the tokens of holders whose lease has ended.

There is one module for each kind of store. A program imports those that it uses. Fences have the
same method :meth:`check`, except where the list says otherwise:

- :class:`fencedlock.fencing.postgresql.PostgreSQLFence`: psycopg, psycopg2, asyncpg
- :class:`fencedlock.fencing.mysql.MySQLFence`: PyMySQL, mysqlclient, mysql-connector, on MySQL and
  MariaDB
- :class:`fencedlock.fencing.sqlite.SQLiteFence`: sqlite3, aiosqlite
- :class:`fencedlock.fencing.sqlalchemy.SQLAlchemyFence`: SQLAlchemy 2 on any database
- :class:`fencedlock.fencing.django.DjangoFence`: Django on any database
- :class:`fencedlock.fencing.redis.RedisFence`: a Redis that keeps data
- :class:`fencedlock.fencing.etcd.EtcdFence`: the etcd that keeps the locks; instead of a check it
  has a compare for your own transaction
- :class:`fencedlock.fencing.memory.MonotonicFence`: state in this process
- :mod:`fencedlock.fencing.http`: a header, and middleware for ASGI and WSGI services

One rule holds for all of them: **check first, read after**, in one transaction.
"""
