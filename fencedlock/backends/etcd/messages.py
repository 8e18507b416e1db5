"""The messages of etcd's v3 API that locks need.

They are described here and built at run time in a descriptor pool of their own. A generated file
would demand a certain range of protobuf versions, and would clash with the generated files that
other packages bring. The numbers are those of etcd's ``rpc.proto`` and ``kv.proto`` (API v3, etcd
3.4 and newer).
"""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Any, Final

_PACKAGE = "fencedlock.etcd"

# Each field is written name:type=number. A star before the name means that the field is repeated. A
# word in parentheses after the type names the oneof that the field belongs to.
_MESSAGES: Final = {
    "KeyValue": "key:bytes=1 create_revision:int64=2 mod_revision:int64=3 version:int64=4 "
    "value:bytes=5 lease:int64=6",
    "Event": "type:int32=1 kv:KeyValue=2 prev_kv:KeyValue=3",
    "ResponseHeader": "cluster_id:uint64=1 member_id:uint64=2 revision:int64=3 raft_term:uint64=4",
    "RangeRequest": "key:bytes=1 range_end:bytes=2 limit:int64=3 revision:int64=4 "
    "sort_order:int32=5 sort_target:int32=6 serializable:bool=7 keys_only:bool=8 count_only:bool=9 "
    "max_create_revision:int64=13",
    "RangeResponse": "header:ResponseHeader=1 *kvs:KeyValue=2 more:bool=3 count:int64=4",
    "PutRequest": "key:bytes=1 value:bytes=2 lease:int64=3 prev_kv:bool=4 ignore_value:bool=5 "
    "ignore_lease:bool=6",
    "PutResponse": "header:ResponseHeader=1 prev_kv:KeyValue=2",
    "DeleteRangeRequest": "key:bytes=1 range_end:bytes=2 prev_kv:bool=3",
    "DeleteRangeResponse": "header:ResponseHeader=1 deleted:int64=2 *prev_kvs:KeyValue=3",
    "RequestOp": "request_range:RangeRequest(request)=1 request_put:PutRequest(request)=2 "
    "request_delete_range:DeleteRangeRequest(request)=3 request_txn:TxnRequest(request)=4",
    "ResponseOp": "response_range:RangeResponse(response)=1 response_put:PutResponse(response)=2 "
    "response_delete_range:DeleteRangeResponse(response)=3 response_txn:TxnResponse(response)=4",
    "Compare": "result:int32=1 target:int32=2 key:bytes=3 version:int64(target_union)=4 "
    "create_revision:int64(target_union)=5 mod_revision:int64(target_union)=6 "
    "value:bytes(target_union)=7 lease:int64(target_union)=8 range_end:bytes=64",
    "TxnRequest": "*compare:Compare=1 *success:RequestOp=2 *failure:RequestOp=3",
    "TxnResponse": "header:ResponseHeader=1 succeeded:bool=2 *responses:ResponseOp=3",
    "CompactRequest": "revision:int64=1 physical:bool=2",
    "CompactResponse": "header:ResponseHeader=1",
    "WatchRequest": "create_request:WatchCreateRequest(request_union)=1 "
    "cancel_request:WatchCancelRequest(request_union)=2 "
    "progress_request:WatchProgressRequest(request_union)=3",
    "WatchCreateRequest": "key:bytes=1 range_end:bytes=2 start_revision:int64=3 "
    "progress_notify:bool=4 *filters:int32=5 prev_kv:bool=6 watch_id:int64=7 fragment:bool=8",
    "WatchCancelRequest": "watch_id:int64=1",
    "WatchProgressRequest": "",
    "WatchResponse": "header:ResponseHeader=1 watch_id:int64=2 created:bool=3 canceled:bool=4 "
    "compact_revision:int64=5 cancel_reason:string=6 fragment:bool=7 *events:Event=11",
    "LeaseGrantRequest": "TTL:int64=1 ID:int64=2",
    "LeaseGrantResponse": "header:ResponseHeader=1 ID:int64=2 TTL:int64=3 error:string=4",
    "LeaseRevokeRequest": "ID:int64=1",
    "LeaseRevokeResponse": "header:ResponseHeader=1",
    "LeaseKeepAliveRequest": "ID:int64=1",
    "LeaseKeepAliveResponse": "header:ResponseHeader=1 ID:int64=2 TTL:int64=3",
    "LeaseTimeToLiveRequest": "ID:int64=1 keys:bool=2",
    "LeaseTimeToLiveResponse": "header:ResponseHeader=1 ID:int64=2 TTL:int64=3 grantedTTL:int64=4 "
    "*keys:bytes=5",
    "AuthenticateRequest": "name:string=1 password:string=2",
    "AuthenticateResponse": "header:ResponseHeader=1 token:string=2",
    "StatusRequest": "",
    "StatusResponse": "header:ResponseHeader=1 version:string=2 dbSize:int64=3 leader:uint64=4 "
    "raftIndex:uint64=5 raftTerm:uint64=6 *errors:string=8",
}

EQUAL, GREATER, LESS, NOT_EQUAL = range(4)
"""The values of ``Compare.result``."""

VERSION, CREATE, MOD, VALUE, LEASE = range(5)
"""The values of ``Compare.target``."""

PUT, DELETE = range(2)
"""The values of ``Event.type``."""

OLDEST_FIRST: Final = {"sort_order": 1, "sort_target": 2}
"""The fields of a RangeRequest that sort by ``create_revision``, ascending."""

_FIELD: Final = re.compile(r"(\*?)(\w+):(\w+)(?:\((\w+)\))?=(\d+)")


@functools.cache
def messages() -> Any:
    """Return the classes of the messages, as attributes: ``messages().TxnRequest``."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file(descriptor_pb2).SerializeToString())
    class_of: Any = getattr(message_factory, "GetMessageClass", None)  # protobuf 4.22 and newer
    if class_of is None:
        factory: Any = message_factory.MessageFactory(pool)
        class_of = factory.GetPrototype
    return SimpleNamespace(
        **{name: class_of(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES}
    )


def _file(descriptor_pb2: Any) -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="fencedlock/etcd.proto", package=_PACKAGE, syntax="proto3"
    )
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        oneofs: list[str] = []
        for star, field_name, kind, oneof, number in _FIELD.findall(fields):
            field = message.field.add(name=field_name, number=int(number))
            field.label = field_type.LABEL_REPEATED if star else field_type.LABEL_OPTIONAL
            if kind in _MESSAGES:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
            if oneof:
                if oneof not in oneofs:
                    oneofs.append(oneof)
                    message.oneof_decl.add(name=oneof)
                field.oneof_index = oneofs.index(oneof)
    return file
