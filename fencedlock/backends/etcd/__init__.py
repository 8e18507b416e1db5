"""The backend for etcd. It uses keys with leases, transactions and watches, over gRPC."""
