//! An embedded development agent that speaks the HTTP wire of a Consul agent.
