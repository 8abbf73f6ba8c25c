"""What drivers of this host stand on: slots, networks and gateways that one server's drivers share."""
