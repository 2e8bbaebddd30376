"""What a backend must hold, as kits of tests to run against it; a prober, and checkers of histories and ownership. Shipped as product."""
