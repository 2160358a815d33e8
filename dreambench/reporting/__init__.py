"""What people look at: the page, the contact sheet, tables for papers. Everything is read from runs' folders."""
