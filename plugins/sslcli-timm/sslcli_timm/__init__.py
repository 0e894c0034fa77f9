"""Every image model of timm as a backbone for sslcli."""
