"""etcd: keys with leases, transactions and watches, by gRPC."""
