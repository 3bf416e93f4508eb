"""One model on several devices: each rank keeps a share of every layer, and all compute every step."""
