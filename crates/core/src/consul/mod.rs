//! The client of the local Consul agent.
