"""Jobs on other machines: from a spec to a submitted Ray job or to Kubernetes manifests."""
