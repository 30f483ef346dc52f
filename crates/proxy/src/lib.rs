//! The data plane of Lictor: inbound, outbound, balancer, relay, limits, drain.
