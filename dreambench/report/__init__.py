"""What people look at: tables on the terminal and for papers, the HTML page, the contact sheet. All are read from runs' folders."""
