"""Networks: arrays in, arrays out. One network a file; no noise, no data, no mesh."""
