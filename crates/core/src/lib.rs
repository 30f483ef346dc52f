//! Identity, verification, rotation and the Consul agent client of Lictor.
