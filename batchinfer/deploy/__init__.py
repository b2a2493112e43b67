"""Jobs on machines that run elsewhere: a spec goes in, a submitted Ray job or Kubernetes manifests come out."""
