"""What people look at: tables and pictures that several parts of the library show."""
