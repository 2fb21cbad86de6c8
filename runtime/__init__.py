"""The thin runtime: engines, pictures, tiles. Imports no other folder of the project and never torch."""
