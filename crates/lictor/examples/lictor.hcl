# Every key of lictor's configuration file, with its default or an example. The same keys exist in TOML, JSON and YAML.
# Run it with `lictor proxy -config lictor.hcl`; check it with `lictor validate lictor.hcl`.

# Whose sidecar this is. With `service`, listeners and upstreams come from this file. Instead of it, one of
#   sidecar_for = "web"               the ID of a registered service, whose sidecar's registration is followed
#   proxy_id    = "web-sidecar-proxy" the ID of the registered sidecar itself
service = "web"

# Threads that carry data. Default: 2, at most the cores.
workers = 2

# Where other services of the mesh connect to. Without it nothing comes in.
inbound {
  listen            = ":21000"          # [host]:port
  app               = "127.0.0.1:8080"  # where the application listens; or unix:///path
  connect_timeout   = "1s"              # to the application
  handshake_timeout = "10s"             # from accept to permit, authorization included
  max_connections   = 5000              # default: what the descriptor limit allows

  # Judge open connections again once a minute and reset those that would be refused by now. Default: never, as with
  # Consul's own proxies. At least 1s; "0s" is never, whatever the registration says. See docs/hardening.md.
  reauthorize = "60s"
}

# Registers the sidecar with the agent; its check passes while /ready is 200.
register {
  enabled = true
  id      = "blue" # suffix of the ID, for several sidecars of one service
}

# A local port that leads to another service; the name of the block is the service unless it says otherwise.
upstream "db" {
  port            = 5432
  address         = "127.0.0.1"
  connect_timeout = "10s" # over all instances that are tried
}

upstream "reports" {
  service     = "db"
  datacenter  = "dc2"
  socket      = "/run/lictor/reports.sock" # instead of port and address
  socket_mode = "0600"
}

upstream "nearest-cache" {
  query = "nearest-cache" # a prepared query instead of a service
  port  = 6379
}

# What a registration that is followed may ask for; whoever may write it is not the operator of this host.
registration {
  allow_public_upstreams = false
  socket_directories     = ["/run/lictor"]
}

# The Consul agent. Consul's own variables (CONSUL_HTTP_ADDR, …) rule over this block.
agent {
  address    = "127.0.0.1:8500" # or http://…, https://…, unix:///path
  token_file = "/etc/lictor/token"

  # Only for https:
  tls {
    ca_file     = "/etc/lictor/agent-ca.pem"
    client_cert = "/etc/lictor/agent-client.pem"
    client_key  = "/etc/lictor/agent-client-key.pem"
    server_name = "server.dc1.consul"
    verify      = true
  }
}

# TLS in the mesh.
tls {
  # backend    = "rustls" # the library; needed only where several are linked
  min_version  = "1.2"
  hybrid       = true  # offer X25519MLKEM768 first where the library has it
  require_fips = false # start only where the library is in FIPS mode
}

# Which peers pass, beyond Consul's own rules.
peers {
  extra_trust_domains       = []
  allow_percent_encoding    = false # names outside the SPIFFE standard's characters
  leaf_skew                 = "0s"  # how far a peer's certificate may begin in the future, at most 120s
  max_leaf_ttl              = "72h" # default: any
  strict_ca_spiffe          = false
  allow_remote_datacenters  = true
}

limits {
  max_connections           = 10000    # both directions; default: what the descriptor limit allows
  max_handshakes            = 1024     # under way at once
  max_handshakes_per_source = 256
  max_held_bytes            = 67108864 # for slow readers, all connections together
  idle_timeout              = "1h"     # default: never
}

# /live /ready /metrics /certs /connections
admin {
  address      = "127.0.0.1:19100" # or "off"
  allow_remote = false
}

log {
  level = "info" # trace, debug, info, warn, error
  json  = false
}

drain {
  timeout = "30s" # how long connections may finish after SIGTERM
  settle  = "2s"  # how long to go on accepting after deregistration
}
