//! Our gRPC services, one file each: translate, check, call, translate back.
