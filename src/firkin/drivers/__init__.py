"""Drivers: what isolates. Each is one package behind `firkin.law.driver.Driver`."""
